"""The doctor: finds the normalization bugs that nothing reports."""

from evenorm.doctor.examination import Examination
from evenorm.doctor.examine import examine
from evenorm.doctor.finding import Finding, Fix, Symptom
from evenorm.doctor.monitor import Monitor

__all__ = ["Examination", "Finding", "Fix", "Monitor", "Symptom", "examine"]
