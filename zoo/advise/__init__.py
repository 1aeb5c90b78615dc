"""What another configuration would have done with the requests of a recording (`zoo advise`)."""
