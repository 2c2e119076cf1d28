"""What the processes of a run will hold, send and take, before anything is started."""
