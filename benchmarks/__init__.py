"""What each part costs, beside its peers: one file per part; gpu.sh measures all of it on one GPU. Not installed."""
