"Tests need no network, and no luck: hypothesis tries the same examples every time, however slow the machine."
import os
from contextlib import contextmanager

import pytest
from hypothesis import settings

os.environ['HF_HUB_OFFLINE'] = '1'
settings.register_profile('qponder', deadline=None, derandomize=True)
settings.load_profile('qponder')


@pytest.fixture
def ctrl_c(monkeypatch):
    "`with ctrl_c(callback, method, step):` a training is interrupted at that step, and the callback is whole again."
    @contextmanager
    def interrupted(callback, method, step):
        real = getattr(callback, method)
        def pulled(self, args, state, control, **kwargs):
            if state.global_step == step: raise KeyboardInterrupt
            return real(self, args, state, control, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(callback, method, pulled)
            with pytest.raises(KeyboardInterrupt): yield
    return interrupted
