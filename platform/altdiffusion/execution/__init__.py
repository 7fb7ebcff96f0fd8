"""Where units run: in this process, or on Ray Data. With `training/launch.py` the only importer of ray."""
