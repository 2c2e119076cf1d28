"""MetaWorld v3: 50 tabletop tasks of one Sawyer arm."""
