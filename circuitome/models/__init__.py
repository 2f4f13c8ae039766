"""Model access: Hugging Face's own modules, with their readers and writers in view."""

from circuitome.models.block import Block as Block
from circuitome.models.check import check_model as check_model
from circuitome.models.families import supported as supported
from circuitome.models.load import BUNDLED as BUNDLED
from circuitome.models.load import DEFAULT_MODEL as DEFAULT_MODEL
from circuitome.models.load import cache_folder as cache_folder
from circuitome.models.load import load as load
from circuitome.models.load import weights_hash as weights_hash
from circuitome.models.model import Call as Call
from circuitome.models.model import FrozenLayer as FrozenLayer
from circuitome.models.model import Inputs as Inputs
from circuitome.models.model import Model as Model
from circuitome.models.model import Tape as Tape
from circuitome.models.model import replaced as replaced
from circuitome.models.norms import Norm as Norm
