"How tests start several processes."
import os
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

ROOT = Path(__file__).resolve().parents[1]
PATHS = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
ENV = os.environ | {'PYTHONPATH': PATHS, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


def gloo(folder):
    "The command before a script that two CPU processes run, each with a whole student."
    return [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']


def in_parts(layout, folder):
    "Likewise, for two that share one student; the layout for eight is written to `folder` for two."
    eight = (ROOT/'qponder'/'configs'/f'{layout}-8.yaml').read_text()
    (folder/'two.yaml').write_text(eight.replace('num_processes: 8', 'num_processes: 2').replace('bf16', '"no"'))
    return [sys.executable, '-m', 'accelerate.commands.launch', '--config_file', str(folder/'two.yaml')]


def fsdp(folder): return in_parts('fsdp', folder)


def zero3(folder):
    pytest.importorskip('deepspeed', reason='needs `pip install deepspeed`, a C++ compiler and ninja')
    return in_parts('zero3', folder)


def meet():
    "What accelerate does for processes that share a student on GPUs alone: have them meet, and know of each other."
    if 'ACCELERATE_USE_DEEPSPEED' in os.environ:
        import deepspeed
        deepspeed.init_distributed('gloo')
    if 'ACCELERATE_USE_FSDP' in os.environ: AcceleratorState.__init__ = shared_on_cpus(AcceleratorState.__init__)


def shared_on_cpus(init):
    "accelerate's state, to which FSDP is known on CPUs, too."
    def known(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type != DistributedType.MULTI_CPU or not fsdp_plugin: return
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state['distributed_type'] = DistributedType.FSDP
    return known
