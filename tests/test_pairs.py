"Pairs are asked in both orders, stored with both paths, and never guessed."
import numpy as np
import pytest
from PIL import Image

from qponder.cli import main
from qponder.distill import Unanswered
from qponder.filters import DistillSettings, load_records
from qponder.pairs import MIRROR, PairRecord, distill_pairs, people_prefer
from qponder.parts import Run
from qponder.scale import QPonderError
from qponder.teacher import MeasuredTeacher
from qponder.trace import CHOICES, Preference, render_preference

WHY = 'The {} photo keeps its detail in the bright sky, while the {} one is soft all over and noisy in dark corners.'


def picture(i): return Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8))


class Seer:
    "Prefers as it is told, or by a rule of its own; breaks off, or has no answer, when told to."
    name = 'seer'

    def __init__(self, rule=None, stop=None, error=KeyboardInterrupt):
        self.rule, self.stop, self.error, self.asked = rule, stop, error, []

    def __call__(self, request):
        if len(self.asked) == self.stop:
            self.stop = None
            raise self.error('no')
        self.asked.append(request)
        told = request.text.rsplit('<answer>', 1)[1].split('<')[0]
        choice = self.rule(request) if self.rule else told
        better, worse = ('first', 'second') if choice == 'equal' else (choice, MIRROR[choice])
        return render_preference(Preference(WHY.format(better, worse), choice))


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    folder, rows = tmp_path_factory.mktemp('photos'), []
    for i, score in enumerate((1.5, 3.0, 3.1, 4.5)):
        picture(i).save(folder/f'{i}.png')
        rows.append({'path': str(folder/f'{i}.png'), 'score': score})
    return list(zip(rows, rows[1:]))


def test_both_orders_are_asked_with_both_photos(pairs, tmp_path):
    seer = Seer()
    records = distill_pairs(pairs, seer, tmp_path)
    assert [r.people for r in records] == ['second', 'first', 'equal', 'equal', 'second', 'first']
    assert {r.verdict for r in records} == {'kept'} and [r.choice for r in records] == [r.people for r in records]
    for q, r in zip(seer.asked, records):
        assert q.image.tobytes() == Image.open(r.path).tobytes() and q.other.tobytes() == Image.open(r.other).tobytes()
        assert f'preferred: {r.people} (' in q.text and r.prompt == 'expert-pair'
    assert load_records(tmp_path/'pairs.jsonl', PairRecord) == records
    again = Seer()
    assert distill_pairs(pairs, again, tmp_path) == records and not again.asked


def test_untold_teachers_are_judged_by_people_and_by_order(pairs, tmp_path):
    untold, by_path = DistillSettings(tell=False), lambda q: 'first'
    records = distill_pairs(pairs, Seer(by_path), tmp_path, untold)
    assert [r.verdict for r in records] == ['agreement', 'order', 'agreement', 'agreement', 'agreement', 'order']
    assert load_records(tmp_path/'pairs.jsonl', PairRecord) == records
    brighter = lambda q: people_prefer(*(np.asarray(p).mean() for p in (q.image, q.other)), margin=0)
    assert 'order' not in {r.verdict for r in distill_pairs(pairs, Seer(brighter), tmp_path/'other', untold)}


def test_a_stopped_run_goes_on_and_silence_is_asked_again(pairs, tmp_path):
    with pytest.raises(KeyboardInterrupt): distill_pairs(pairs, Seer(stop=4), tmp_path)
    quiet = Seer(stop=0, error=Unanswered)
    assert [r.verdict for r in distill_pairs(pairs, quiet, tmp_path)].count('unanswered') == 1
    last = Seer()
    assert {r.verdict for r in distill_pairs(pairs, last, tmp_path)} == {'kept'} and len(last.asked) == 1


def test_bad_pairs_and_bad_teachers(pairs, tmp_path):
    gone = dict(pairs[0][0], path=str(tmp_path/'gone.png'))
    records = distill_pairs([(gone, pairs[0][1])], Seer(), tmp_path)
    assert {r.verdict for r in records} == {'unreadable'} and 'gone.png' in records[0].note
    with pytest.raises(QPonderError, match='teacher = served'): distill_pairs(pairs, MeasuredTeacher(), tmp_path)

    def talker(request): return 'Both are nice.'
    talker.name = 'talker'
    with pytest.raises(QPonderError, match="talker: none of its first 4 .*'Both are nice.'"):
        distill_pairs(pairs, talker, tmp_path, DistillSettings(trial=4))


def test_every_choice_has_its_mirror():
    assert all(MIRROR[MIRROR[c]] == c for c in (*CHOICES, ''))
    scores = (3, 3.2), (3.2, 3), (3, 3.3), (4, 1)
    assert [people_prefer(a, b) for a, b in scores] == ['equal', 'equal', 'second', 'first']


def test_the_command_asks_in_both_orders_and_not_again(pairs, tmp_path, monkeypatch, capsys):
    rows = [pairs[0][0], *(b for _, b in pairs)] * 2
    (tmp_path/'mine.csv').write_text('image,mos,split\n' + ''.join(
        f'{r["path"]},{r["score"]},{split}\n' for split in ('train', 'val', 'test') for r in rows[:4]))
    seer = Seer()
    monkeypatch.setattr(Run, 'teacher', property(lambda self: seer))
    monkeypatch.chdir(tmp_path)
    line = ['pairs', '--data', 'mine.csv', '--low', '1', '--high', '5', '--split-col', 'split', '--name', 'p']
    assert main([*line, '--pairs', '2']) == 0 and len(seer.asked) == 4
    assert main([*line, '--pairs', '3', '--margin', '.05']) == 0
    kept = load_records(tmp_path/'runs/p/pairs/pairs.jsonl', PairRecord)
    assert len(kept) == len({r.id for r in kept}) and {r.verdict for r in kept} == {'kept'}
    assert len(seer.asked) >= 6 and 'pairs.jsonl' in capsys.readouterr().out


@pytest.mark.parametrize('more, words', [
    (['--pairs', '0', '--set', 'served_model=big'], 'ask for 1 or more'), (['--set', 'teacher=measured'], 'served'),
    ([], 'served_model')])
def test_the_command_says_what_it_lacks(more, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['pairs', '--set', 'teacher=served', *more]) == 2
    assert words in capsys.readouterr().err
