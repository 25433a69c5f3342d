"""Losses: what a plugin loss may see, the plugin losses, what is known of TRL's, and the kit that checks any of them.

The standard library only at module top, so that naming a loss does not pay for torch.
"""
