"""Where units run: in this process, or on Ray Data. With `training/launch_ray.py` the only importer of ray."""
