"""Files that survive crashes and full disks."""
