"`qponder`, killed in each process when a training is at step STOP_AT; see test_students."
import os
import sys

from launch import meet
from qponder.cli import main
from qponder.watch import Validate

look = Validate.on_step_end


def stop(self, args, state, control, **kwargs):
    if os.environ['STOP_AT'] == str(state.global_step): os._exit(1)
    look(self, args, state, control, **kwargs)


Validate.on_step_end = stop
meet()
sys.exit(main())
