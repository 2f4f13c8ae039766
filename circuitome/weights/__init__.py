"""What weights alone say: circuits of heads, and how heads compose."""

from circuitome.weights.circuits import ov_circuit as ov_circuit
from circuitome.weights.circuits import qk_circuit as qk_circuit
from circuitome.weights.circuits import rotations as rotations
from circuitome.weights.circuits import token_ov as token_ov
from circuitome.weights.circuits import token_qk as token_qk
from circuitome.weights.conv import ConvNet as ConvNet
from circuitome.weights.conv import Expanded as Expanded
from circuitome.weights.conv import net_of_weights as net_of_weights
from circuitome.weights.convnet import conv_net as conv_net
from circuitome.weights.convnet import load_conv_net as load_conv_net
from circuitome.weights.copying import copying_scores as copying_scores
from circuitome.weights.copying import ov_eigenvalues as ov_eigenvalues
from circuitome.weights.factored import Factored as Factored
from circuitome.weights.head_composition import Composition as Composition
from circuitome.weights.head_composition import chance as chance
from circuitome.weights.head_composition import composition as composition
from circuitome.weights.lens import Lens as Lens
from circuitome.weights.lens import logit_lens as logit_lens
from circuitome.weights.logits import LogitAttribution as LogitAttribution
from circuitome.weights.logits import direct_logit_attribution as direct_logit_attribution
from circuitome.weights.pairs import TokenPairs as TokenPairs
from circuitome.weights.pairs import ov_pairs as ov_pairs
from circuitome.weights.pairs import qk_pairs as qk_pairs
from circuitome.weights.pairs import strongest as strongest
