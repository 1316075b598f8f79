"What each of several processes does: cold starts and GRPO of a miniature whose answers are given; see test_processes."
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from datasets import Dataset
from launch import meet
from trl import GRPOTrainer

from qponder import grpo as page
from qponder import ask, sft, watch
from qponder.filters import Record
from qponder.grpo import GRPOSettings, grpo
from qponder.model import load_student
from qponder.photo import pristine
from qponder.processes import place
from qponder.reward import RewardSettings
from qponder.sft import SFTSettings, cold_start
from qponder.share import tensor_hash
from qponder.tiny import tiny_vlm
from qponder.trace import Trace, render

WORDS = 'excellent', 'good', 'fair', 'bad'
SAID = [Trace(f'Overall the quality is {w}.', s) for w, s in zip(WORDS, (4.6, 3.8, 3.0, 1.4))]
RECORDS = [Record(path=str(p), target=t.score, std=.5, status='ok', raw=render(t)) for p, t in zip(pristine(), SAID)]
SFT = SFTSettings(epochs=10, batch_size=4, score_weight=1, score_only_every=0, eval_every=100, save_every=100)
GRPO = GRPOSettings(steps=3, group_size=4, prompts_per_step=2, rollouts_per_pass=8, max_completion_length=60,
                    eval_every=100, save_every=100, preflight_prompts=0)
# what compares photos; of three groups in two processes the second is torn, and each process takes two turns
ORDER = replace(SFT, objective='soft+fidelity')
RANK = replace(GRPO, prompts_per_step=3, rollouts_per_pass=3, scale_rewards='batch')
COMPARED = RewardSettings(w_rank=3, uncertainty=1)
# rollouts that are learned from twice, so far that words are held back the second time
TWICE = replace(GRPO, steps=4, iterations=2, learning_rate=.002, epsilon_high=.001)


class Told(GRPOTrainer):
    "Rollouts depend on the photo and on their place in its group, not on which process draws them."
    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, **kwargs):
        words = self.processing_class.tokenizer
        def answer(image, n):
            shift = self.processing_class.image_processor(image, return_tensors='pt')['pixel_values']
            trace = SAID[(n + tensor_hash(shift)[0]) % len(SAID)]
            return [*words(render(trace), add_special_tokens=False)['input_ids'], words.eos_token_id]
        before = place().rank * len(images)
        return [answer(i, (before + n) % num_generations) for n, i in enumerate(images)], None


def watched(folder):
    "A step and three validation photos. The student spells its scores, and of its answers the second has none."
    val = Dataset.from_list([dict(path=r.path, score=r.target) for r in RECORDS[:3]])
    mine, some = iter(watch.my_share(3)), Trace('', 3.)
    place = patch.object(ask, 'score_place', lambda student, tokens: None if next(mine) == 1 else 2)
    with place, patch.object(watch, 'parse', lambda *answer: some):
        cold_start(tiny_vlm('qwen2.5-vl'), RECORDS, folder/'watched', replace(SFT, epochs=1), val)


def train(folder):
    "All trainings, each from the student in folder/start. In float32: bfloat16 rounds two rows otherwise than four."
    sft.fast_bf16 = page.fast_bf16 = lambda: False
    for name, how in ('sft', SFT), ('order', ORDER): cold_start(load_student(folder/'start'), RECORDS, folder/name, how)
    cold_start(load_student(folder/'start'), RECORDS, folder/'none', replace(SFT, epochs=0))
    watched(folder)
    page.GRPOTrainer = Told
    try:
        grpo(load_student(folder/'start'), RECORDS, folder/'grpo', GRPO)
        grpo(load_student(folder/'start'), RECORDS, folder/'rank', RANK, COMPARED)
        grpo(load_student(folder/'none'/'model'), RECORDS, folder/'twice', TWICE)
    finally: page.GRPOTrainer = GRPOTrainer


if __name__ == '__main__':
    meet()
    train(Path(sys.argv[1]))
