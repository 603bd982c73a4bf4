"""Running a study on a cluster: which partition, what it costs, what is missing, how far it is."""
