"""``elasticps doctor``: what is wrong, and what to do about it."""

from elasticps.cli.doctor.command import doctor

__all__ = ["doctor"]
