"""Lightning's strategy for a mesh of processes: the module stays as it is, and checkpoints are those of one process."""

import signal
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from dsv2.distributed.mesh import Mesh
from dsv2.distributed.shards import own_state, whole_state
from dsv2.training.module import Module
from dsv2.training.processes import is_loss_of_peer

PREFIX = "model."  # of the model's weights in the state dict of the Lightning module


class MeshStrategy(DDPStrategy):
    """Sets processes up as DDP does, without wrapping the module, which averages its gradients itself.

    A checkpoint has all experts and the whole state of the optimiser, so that it can be resumed with any number of
    processes. All processes gather it, and the first one writes it.
    """

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.mesh = mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Which share of a step's sequences is this process's; the stages of a pipeline have the same."""
        return {"num_replicas": self.mesh.num_shares, "rank": self.mesh.share}

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Whether the module is on its device first: only there can processes exchange weights."""
        return True

    def configure_ddp(self) -> None:
        """Do nothing: wrapped, all weights would be averaged over all processes, experts too."""

    @property
    def _trained(self) -> Module:
        assert isinstance(self.lightning_module, Module)
        return self.lightning_module

    def on_exception(self, exception: BaseException) -> None:
        """Put off SIGTERM once another process is lost, since a launcher sends it while that is being recorded."""
        super().on_exception(exception)
        if is_loss_of_peer(exception):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def lightning_module_state_dict(self) -> dict[str, Any]:
        module = self._trained
        with module.whole():
            others = {name: value for name, value in module.state_dict().items() if not name.startswith(PREFIX)}
            return others | whole_state(module.model, self.mesh.experts, PREFIX)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self._trained
        with module.whole():
            own = own_state(checkpoint["state_dict"], module.model, self.mesh.experts, PREFIX)
            module.load_state_dict(own, strict=strict)
