"""The log of a run: written, read (other projects' logs too), plotted, and sent to trackers."""
