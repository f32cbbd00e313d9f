"""What `gsas_lab` offers by name, for type checkers: they cannot follow its lazy imports."""

from gsas_lab.baselines import MF as MF
from gsas_lab.baselines import Popularity as Popularity
from gsas_lab.diagnosis import (
    diagnose as diagnose,
)
from gsas_lab.diagnosis import (
    diagnose_run as diagnose_run,
)
from gsas_lab.diagnosis import (
    diagnose_table as diagnose_table,
)
from gsas_lab.encoders import BERT4Rec as BERT4Rec
from gsas_lab.encoders import SASRec as SASRec
from gsas_lab.errors import InputError as InputError
from gsas_lab.interactions import Interactions as Interactions
from gsas_lab.interactions import load as load
from gsas_lab.ranking import evaluate as evaluate
from gsas_lab.runs import Run as Run
from gsas_lab.runs import train as train
from gsas_lab.settings import Settings as Settings
from gsas_lab.splits import leave_one_out as leave_one_out

__version__: str
__all__: list[str]
