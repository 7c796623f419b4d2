from reid.config import Config as Config
from reid.config import Method as Method
from reid.run import Run as Run
from reid.terms import Batch as Batch
from reid.terms import Step as Step
from reid.terms import Term as Term

__version__: str
