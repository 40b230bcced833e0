"""`headrace torture FILE`: a site's tiers as real processes, killed, paused and cut off under load; then what was acked is checked.

`layout` says what of the file becomes a process, a door and a link, `schedule` what is done to them, both without I/O; `fleet` are
devices that know what was acked, `proxy` is a link that can be cut; `trial` runs it all, `verdict` judges, `report` tells.
"""
