"""Jobs: independent work under content addresses, on this machine or on a cluster."""
