"""Every knob of every step: one frozen dataclass a step, one field a knob, its meaning beside it.

A field is annotated with its type and a `Knob`: the text that `--help` prints, its range, its flag where that is not
the field's own name, and how the manifest remembers it. A repeatable knob is a tuple under a plural name
(`recipients`), its flag the singular (`--recipient`).
"""

from modelctl.knobs import Options as Options
from modelctl.knobs import granted_threads as granted_threads
from modelctl.options.choices import Calibration as Calibration
from modelctl.options.choices import Device as Device
from modelctl.options.choices import Goal as Goal
from modelctl.options.choices import Importance as Importance
from modelctl.options.choices import KeyType as KeyType
from modelctl.options.choices import Loss as Loss
from modelctl.options.choices import May as May
from modelctl.options.choices import Method as Method
from modelctl.options.choices import Metric as Metric
from modelctl.options.choices import Optimizer as Optimizer
from modelctl.options.choices import Precision as Precision
from modelctl.options.choices import PruneMethod as PruneMethod
from modelctl.options.choices import PruneSchedule as PruneSchedule
from modelctl.options.choices import Schedule as Schedule
from modelctl.options.choices import Scope as Scope
from modelctl.options.compression import DistillOptions as DistillOptions
from modelctl.options.compression import OptimizeOptions as OptimizeOptions
from modelctl.options.compression import PruneOptions as PruneOptions
from modelctl.options.compression import TrainOptions as TrainOptions
from modelctl.options.predicting import PredictOptions as PredictOptions
from modelctl.options.quantizing import QuantizeOptions as QuantizeOptions
from modelctl.options.shared import MeasuredOptions as MeasuredOptions
from modelctl.options.shared import OpeningOptions as OpeningOptions
from modelctl.options.shared import StepOptions as StepOptions
from modelctl.options.steps import DecryptOptions as DecryptOptions
from modelctl.options.steps import EncryptOptions as EncryptOptions
from modelctl.options.steps import EvalOptions as EvalOptions
from modelctl.options.steps import ExportOptions as ExportOptions
from modelctl.options.steps import InitOptions as InitOptions
from modelctl.options.steps import KeygenOptions as KeygenOptions
from modelctl.options.steps import PullOptions as PullOptions
from modelctl.options.steps import PushOptions as PushOptions
from modelctl.options.steps import ServeOptions as ServeOptions
from modelctl.options.steps import SignOptions as SignOptions
from modelctl.options.steps import VerifyOptions as VerifyOptions
