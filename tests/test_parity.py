"vLLM is no guest of the tests, so a stand-in shows what it would be asked, and when."
import gc
import sys
import weakref
from types import SimpleNamespace as NS

import pytest
import torch

from qponder import parity as page
from qponder.adapt import eight_photos
from qponder.build import tiny_student
from qponder.parity import parity
from qponder.scale import QPonderError
from qponder.trace import Trace, render


@pytest.fixture
def engine(monkeypatch):
    "A stand-in for vLLM that answers, and what it and the loader of students were told."
    seen = NS(model=None, prompts=[], said=render(Trace('Overall the quality is fair.', 3.)), alive=None, refuses='')

    class LLM:
        def __init__(self, **how):
            if seen.refuses: raise ValueError(seen.refuses)
            seen.how, seen.alive = how, seen.model()

        def generate(self, asked, sampling):
            seen.prompts, seen.sampling = asked, sampling
            return [NS(outputs=[NS(text=seen.said, finish_reason='stop')]) for _ in asked]

    def load(name, device):
        seen.device, student = device, tiny_student()
        student.model.to(torch.bfloat16)
        seen.model = weakref.ref(student.model)
        return student

    monkeypatch.setitem(sys.modules, 'vllm', NS(LLM=LLM, SamplingParams=dict))
    monkeypatch.setattr(page, 'find_spec', lambda name: True)
    monkeypatch.setattr(page, 'best_device', lambda: 'cuda')
    monkeypatch.setattr(page, 'load_to_rate', load)
    yield seen
    gc.collect()


def test_vllm_is_asked_the_same_in_the_same_precision_once_the_other_is_gone(engine):
    found = parity('a/folder', eight_photos(), longest=8)
    assert engine.device == 'cuda' and engine.alive is None
    assert engine.how == dict(model='a/folder', dtype='bfloat16', limit_mm_per_prompt={'image': 1})
    assert engine.sampling == dict(temperature=0, max_tokens=8) and len(engine.prompts) == 8
    assert {p['prompt'].count('<image>') for p in engine.prompts} == {1}
    assert found.photos == 8 and found.read[1] == 1 and not found.good


def test_a_student_that_vllm_refuses_is_named(engine):
    engine.refuses = 'LlavaX is not supported'
    with pytest.raises(QPonderError, match='a/folder: vLLM does not take this student .LlavaX'):
        parity('a/folder', eight_photos()[:1], longest=8)
