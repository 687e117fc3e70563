"""Tracking: what is measured (quantities), when (schedule) and on what (a fixed probe set), without touching the training."""

from noisesam.tracking.measurement import Measurement as Measurement
from noisesam.tracking.quantities import QUANTITIES as QUANTITIES
from noisesam.tracking.quantities import Quantity as Quantity
from noisesam.tracking.schedule import Schedule as Schedule
from noisesam.tracking.schedule import every_epochs as every_epochs
from noisesam.tracking.schedule import every_steps as every_steps
from noisesam.tracking.schedule import log_spaced as log_spaced
from noisesam.tracking.tracker import Tracker as Tracker
from noisesam.tracking.undisturbed import undisturbed as undisturbed
