"How tests start several processes."
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATHS = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
ENV = os.environ | {'PYTHONPATH': PATHS, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


def gloo(folder):
    "The command before a script that two CPU processes run, each with a whole student."
    return [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']


def zero3(folder):
    "Likewise, for two that share one student; the layout is written to `folder`."
    pytest.importorskip('deepspeed', reason='needs `pip install deepspeed`, a C++ compiler and ninja')
    layout = (ROOT/'qponder'/'configs'/'zero3-8.yaml').read_text()
    (folder/'two.yaml').write_text(layout.replace('num_processes: 8', 'num_processes: 2').replace('bf16', '"no"'))
    return [sys.executable, '-m', 'accelerate.commands.launch', '--config_file', str(folder/'two.yaml')]


def meet():
    "What accelerate has DeepSpeed's processes do on GPUs alone; nothing without DeepSpeed."
    if 'ACCELERATE_USE_DEEPSPEED' not in os.environ: return
    import deepspeed
    deepspeed.init_distributed('gloo')
