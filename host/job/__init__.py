"""One room: what a job process runs. The folder listing is the pipeline."""
