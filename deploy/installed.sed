# Makes the configuration of an installed zoo of the shipped one: sed -f deploy/installed.sed config.toml
s|^# endpoint = "[^"]*" |endpoint = "ipc:///run/zoo/broker"|
s|^# group = |group = |
s|^# user = |user = |
s|^# state_dir = "state" |state_dir = "/var/lib/zoo/state" |
s|^weights_dir = .*|weights_dir = "/var/lib/zoo/weights"|
s|^metrics = false |metrics = "127.0.0.1:9464" |
s|^# What other programs speak|[gateway]\
http = "127.0.0.1:8000"\
\
&|
