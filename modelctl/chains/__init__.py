"""What is done before a model and after it, as the manifest declares it: its form, and how it is typed; no doing.

`preprocess` has one entry for each input of the model that is made of something raw; `postprocess` is a chain, each
entry of which takes what the one before it made of the same output. `modelctl/processing` carries them out.
"""

from modelctl.chains.forms import FILTERS as FILTERS
from modelctl.chains.forms import TOKENIZER_SUFFIX as TOKENIZER_SUFFIX
from modelctl.chains.forms import Argmax as Argmax
from modelctl.chains.forms import Category as Category
from modelctl.chains.forms import Image as Image
from modelctl.chains.forms import Normalize as Normalize
from modelctl.chains.forms import Number as Number
from modelctl.chains.forms import Pool as Pool
from modelctl.chains.forms import Postprocess as Postprocess
from modelctl.chains.forms import Preprocess as Preprocess
from modelctl.chains.forms import Sigmoid as Sigmoid
from modelctl.chains.forms import Softmax as Softmax
from modelctl.chains.forms import Table as Table
from modelctl.chains.forms import Text as Text
from modelctl.chains.forms import Threshold as Threshold
from modelctl.chains.forms import TopK as TopK
