"""Generated and recorded traces of image requests, and the simulation of a cache on a trace."""
