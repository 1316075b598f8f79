"Tests need no network, and no luck: hypothesis tries the same examples every time, however slow the machine."
import os

from hypothesis import settings

os.environ['HF_HUB_OFFLINE'] = '1'
settings.register_profile('qponder', deadline=None, derandomize=True)
settings.load_profile('qponder')
