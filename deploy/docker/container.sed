# After installed.sed, for a container: callers come by its network. Docker's own networks are trusted; what else may
# reach the port needs a token (docs/gateway.md), or its network here.
s|^http = "127.0.0.1:8000"|http = "0.0.0.0:8000"\
trusted_networks = ["127.0.0.0/8", "172.16.0.0/12"]|M
