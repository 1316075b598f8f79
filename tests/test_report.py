"A report holds what the run has stored, says what is missing, and needs no other file."
import json
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qponder.cli import main
from qponder.compare import contrast, contrast_words
from qponder.evaluate import tabulate
from qponder.figures import MODELS, curve, extremes, group, svg, thumbnail
from qponder.filters import Record
from qponder.metrics import Interval
from qponder.predict import Prediction, said
from qponder.report import gain, headline, paid, report, results, summary, verdict, verdicts
from qponder.scale import QPonderError

WORDS = '<think>Edges are soft & <b>blurred</b>.</think>\n<answer>{:.1f}</answer>'


class Page(HTMLParser):
    "All tags, the addresses that they load, and whether they nest."
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ('src', 'href', 'xlink:href', 'data', 'srcset')]
        self.ids += [v for k, v in attrs if k == 'id']
        if tag not in ('meta', 'img', 'br'): self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag in self.open[-1:]: self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def predictions(folder, n=24):
    rng, out = np.random.default_rng(0), []
    human = rng.uniform(1.2, 4.8, n)
    for i in range(n): Image.new('RGB', (40, 30), (i * 9, 80, 80)).save(folder/f'{i}.png')
    for model, noise in zip(('constant', *MODELS), (9, 1.5, .5, .45)):
        for i, h in enumerate(human):
            s = 3.0 if model == 'constant' else float(np.clip(h + rng.normal(0, noise), 1, 5))
            words = dict(expected=s, text=WORDS.format(s), reward=dict(total=.5, agreement=.5))
            if model not in MODELS: words = {}
            out += [Prediction(model, str(folder/f'{i}.png'), split, h, greedy=s, **words) for split in ('val', 'test')]
    bad = out.index(next(p for p in out if p.model == 'Q-Ponder' and p.split == 'test'))
    out[bad] = Prediction('Q-Ponder', out[bad].path, 'test', out[bad].score, status='no_answer', text='<i>', reward={})
    return out


def lines(rows): return ''.join(json.dumps(r) + '\n' for r in rows)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')/'a & b'
    for s in ('distill', 'cold-start', 'grpo', 'evaluate'): (folder/s).mkdir(parents=True)
    said = predictions(tmp_path_factory.mktemp('photos'))
    (folder/'evaluate'/'predictions.jsonl').write_text(lines(map(asdict, said)))
    table = tabulate([p for p in said if p.split == 'test'], n=50)
    (folder/'evaluate'/'metrics.json').write_text(json.dumps(table.dicts()))
    for stage in ('cold-start', 'grpo'):
        parts = {'rewards/format/mean': 1., 'rewards/accuracy/mean': .5}
        log = [dict(step=i, loss=3 / i, reward=i / 30, **parts) for i in range(1, 20)]
        log += [dict(step=i, val_srcc=None if i == 5 else i / 20, val_parse_rate=1.) for i in (5, 10, 15)]
        (folder/stage/'log.jsonl').write_text(lines(log))
    records = [Record(id=str(i), path=f'{i}.png', score=2. + i, raw=WORDS.format(2.), status='ok', target=2., verdict=v)
               for i, v in enumerate(('kept', 'kept', 'gap'))]
    records.append(Record(id='x', path='gone.png', score=3., verdict='unreadable', note='gone.png: no such file'))
    (folder/'distill'/'traces.jsonl').write_text(lines(map(asdict, records)))
    for s in ('distill', 'cold-start', 'grpo', 'evaluate'):
        (folder/s/'manifest.json').write_text(json.dumps(dict(stage=s, inputs={'seed': 0, 'sft_epochs': 2}, starts=1,
            versions={'torch': '2.x'}, wall_seconds=61.2, peak_memory_mb=None, image_policy={'size': 224})))
    return folder


@pytest.fixture(scope='module')
def page(run): return report(run).read_text(encoding='utf-8')


def test_page_is_whole_and_loads_nothing(page):
    found = Page(page)
    assert not found.open or found.open == ['html']
    assert found.links and all(v.startswith(('data:', '#')) for v in found.links)
    assert 'script' not in found.tags and 'link' not in found.tags and '@import' not in page and 'url(http' not in page


def test_ids_are_unique_across_figures(page):
    ids = Page(page).ids
    assert len({i.split('-')[0] for i in ids}) >= 3
    for name in ('axes_1', 'figure_1'):
        same = [i for i in ids if i.endswith(name)]
        assert len(same) == len(set(same))


def test_every_part_is_there(page):
    for words in ('Results on the test photos', 'Q-Ponder-CI', 'constant', 'closest to people', 'farthest off', 'GRPO',
                  'Cold start', 'Distillation', '2 of 4 traces were kept', 'gone.png: no such file', 'sft_epochs',
                  'torch 2.x', '1 of 24'):
        assert words in page, words
    assert page.count('<svg') == 3 and page.count('<figure>') == 6 and page.count('data:image/jpeg') == 6


def test_texts_of_models_are_escaped(page):
    assert '<b>blurred</b>' not in page and '&lt;b&gt;blurred' in page
    assert 'a &amp; b' in page


def test_differences_within_noise_are_said_to_be(page):
    assert 'Q-Ponder against Q-Ponder-CI, SRCC: within noise' in page
    assert 'Q-Ponder-CI is better than base in SRCC' in page
    assert 'Q-Ponder and constant cannot be compared in SRCC' in page


def test_works_in_light_and_dark_and_in_print(page):
    assert 'color-scheme:light dark' in page and '@media print' in page and 'width=device-width' in page
    assert 'currentColor' in page and '#101112' not in page


def test_the_same_files_make_the_same_page(run, page): assert report(run).read_text(encoding='utf-8') == page


def test_small(page): assert len(page) < 400_000


@pytest.mark.parametrize('stage, command', [('distill', 'distill'), ('cold-start', 'sft'), ('grpo', 'grpo'),
                                            ('evaluate', 'evaluate')])
def test_what_is_missing_is_said(run, tmp_path, stage, command):
    shutil.copytree(run, tmp_path/'copy')
    shutil.rmtree(tmp_path/'copy'/stage)
    text = report(tmp_path/'copy').read_text(encoding='utf-8')
    assert f'<code>qponder {command}</code> makes it' in text


def test_no_run_at_all(tmp_path):
    with pytest.raises(QPonderError, match='there is no run here'): report(tmp_path)


@pytest.mark.parametrize('file', ['evaluate/metrics.json', 'evaluate/predictions.jsonl', 'grpo/log.jsonl',
                                  'distill/traces.jsonl', 'grpo/manifest.json'])
def test_damaged_files_are_named(run, tmp_path, file):
    shutil.copytree(run, tmp_path/'copy')
    (tmp_path/'copy'/file).write_text('{"torn\n{}\n')
    with pytest.raises(QPonderError, match=re.escape(file.split('/')[1])): report(tmp_path/'copy')


def test_a_photo_that_is_gone_is_said_to_be(run, tmp_path):
    said = Prediction('Q-Ponder', str(tmp_path/'gone.png'), 'test', 3., greedy=3.)
    assert 'gone.png' in thumbnail(said.path) and '<img' not in thumbnail(said.path)


def test_pictures_that_are_gone_are_counted_and_can_be_brought_back(run, tmp_path, monkeypatch, capsys):
    "Moved photos, and a run whose paths begin in another working folder."
    (tmp_path/'photos').mkdir()
    said = [replace(p, path=f'photos/{Path(p.path).name}') for p in predictions(tmp_path/'photos')]
    shutil.copytree(run, tmp_path/'runs'/'one')
    (tmp_path/'runs'/'one'/'evaluate'/'predictions.jsonl').write_text(lines(map(asdict, said)))
    monkeypatch.chdir(tmp_path)
    def page():
        assert main(['report', '--name', 'one', '--runs', str(tmp_path/'runs')]) == 0
        return capsys.readouterr().out, (tmp_path/'runs'/'one'/'report.html').read_text().count('<img')
    assert page()[1] == 6 and 'missing' not in page()[0]
    first = [p.path for some in extremes([p for p in said if (p.model, p.split) == ('Q-Ponder', 'test')]) for p in some]
    for path in first[2:4]: Path(path).rename(Path(path).with_suffix('.away'))
    assert f'2 of 6 pictures are missing from it, the first is {first[2]}: put the photos back' in page()[0]
    for path in first[2:4]: Path(path).with_suffix('.away').rename(path)
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    out, shown = page()
    assert shown == 0 and '6 of 6 pictures' in out and 'change to the folder in which the run was made' in out
    monkeypatch.chdir(tmp_path)
    assert page()[1] == 6


def test_one_prediction_breaks_nothing(run, tmp_path):
    (tmp_path/'evaluate').mkdir()
    one = [Prediction('Q-Ponder', 'x.png', 'test', 3., greedy=3., text=WORDS.format(3.), reward={'total': 1.})]
    (tmp_path/'evaluate'/'predictions.jsonl').write_text(lines(map(asdict, one)))
    (tmp_path/'evaluate'/'metrics.json').write_text(json.dumps(tabulate(one, n=10).dicts()))
    assert '1 of' not in results(tmp_path) and '0 of 1' in results(tmp_path) and '0 of 1' in summary(tmp_path)


@pytest.mark.parametrize('left, begins', [
    (MODELS, 'Q-Ponder ranks 24 test photos'), (MODELS[:2], 'Q-Ponder-CI ranks 24 test photos'),
    (MODELS[:1], 'This run has no results yet.'), ((), 'This run has no results yet.')])
def test_the_headline_is_about_the_last_student_that_was_trained(run, tmp_path, left, begins):
    (tmp_path/'evaluate').mkdir()
    rows = json.loads((run/'evaluate'/'metrics.json').read_text())
    (tmp_path/'evaluate'/'metrics.json').write_text(json.dumps([m for m in rows if m['model'] in (*left, 'constant')]))
    assert headline(tmp_path).startswith(begins)


def test_a_student_without_a_ranking_is_not_passed_over(run, tmp_path):
    (tmp_path/'evaluate').mkdir()
    rows = json.loads((run/'evaluate'/'metrics.json').read_text())
    for m in rows:
        if m['model'] == 'Q-Ponder': m |= dict(failed=24, srcc=dict(value=None, low=None, high=None))
    (tmp_path/'evaluate'/'metrics.json').write_text(json.dumps(rows))
    assert headline(tmp_path) == 'Q-Ponder has no SRCC on 24 test photos; 24 answers could not be read.'


def test_summary_fits_a_terminal(run):
    rows = summary(run).split('\n\n')[0].splitlines()
    assert len(rows) == 1 + 1 + 2 * 3 and max(map(len, rows)) < 120 and len({len(r) for r in rows}) == 1


def test_failures_have_no_score_and_earn_nothing():
    good = [Prediction('a', str(i), 'test', i, greedy=float(i), reward={'total': 1.}) for i in range(1, 5)]
    bad = [*good[:3], Prediction('b', '4', 'test', 4, status='truncated')]
    assert [said(p) for p in bad] == [1, 2, 3, None]
    assert paid(good, bad).value == .25
    # ranks 1.5, 3, 4, 1.5 against 1, 2, 3, 4: the failed answer ties with the worst photo
    assert gain(good, bad).value == pytest.approx(1 - .5 / np.sqrt(4.5 * 5))


def test_a_report_compares_as_the_comparison_of_runs_does():
    "Some answers failed, some have no expected score, and only one of the runs knows the references."
    rng = np.random.default_rng(0)
    def run(model, noise):
        for i, h in enumerate(rng.uniform(1, 5, 60)):
            s = float(np.clip(h + rng.normal(0, noise), 1, 5))
            yield Prediction(model, f'{i}.png', 'test', h, greedy=s, expected=s, reward=dict(agreement=s / 5))
    base = list(run('base', .9))
    ours = [replace(p, model='Q-Ponder', greedy=q.greedy, expected=None if i < 9 else q.greedy, reward=q.reward)
            for i, (p, q) in enumerate(zip(base, run('Q-Ponder', .9)))]
    ours[20:30] = [replace(p, status='truncated', greedy=None, expected=None, reward={}) for p in ours[20:30]]
    known = [replace(p, reference=f'{i // 3}') for i, p in enumerate(base)]
    for one, other in ((base, ours), (known, ours)):
        assert gain(other[::-1], one).value == pytest.approx(contrast(one, other, n=50).more.value)
        assert gain(other, one) == contrast(one, other, n=1000).more
        assert paid(other, one, 'agreement') == contrast_words(one, other, n=1000).more
    assert gain(ours, known) != gain(ours, base)


def test_a_comparison_says_how_many_photos_and_failures_it_rests_on():
    "Fifty of sixty answers failed: sixty photos were compared, and the sentence says what the fifty did"
    rng = np.random.default_rng(0)
    of = lambda model: [Prediction(model, f'{i}', 'test', 1 + i / 15, greedy=s)
                        for i, s in enumerate(rng.uniform(1, 5, 60).tolist())]
    some = dict(base=of('base'), constant=of('constant'))
    some['base'][10:] = [replace(p, status='no_answer', greedy=None) for p in some['base'][10:]]
    assert 'unreadable, and counted as the worst: 50)' in verdicts(some)[0]
    few = {m: [Prediction(m, str(i), 'test', 2. + i, greedy=2. + i, reference=str(i // 2)) for i in range(3)]
           for m in ('base', 'constant')}
    assert verdicts(few) == ['base against constant, SRCC: within noise on 3 photos (+0.000, no interval).']


def test_models_that_saw_different_photos_are_not_compared(run, tmp_path):
    shutil.copytree(run, tmp_path/'copy')
    file = tmp_path/'copy'/'evaluate'/'predictions.jsonl'
    rows = [r for r in map(json.loads, file.read_text().splitlines())
            if (r['model'], Path(r['path']).name) != ('base', '3.png')]
    file.write_text(lines(rows))
    page = report(tmp_path/'copy').read_text(encoding='utf-8')
    assert 'Q-Ponder-CI and base cannot be compared: the models were asked about different photos' in page
    assert 'Q-Ponder against Q-Ponder-CI, SRCC' in page


def test_the_page_and_the_terminal_say_whose_scores_are_not_all_expected_ones(run, page, tmp_path):
    shutil.copytree(run, tmp_path/'copy')
    file = tmp_path/'copy'/'evaluate'/'predictions.jsonl'
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for r in [r for r in rows if (r['model'], r['split']) == ('base', 'test')][:4]: r['expected'] = None
    file.write_text(lines(rows))
    told = 'Answers without an expected score, which count by the written one: 4 by base.'
    assert told in report(tmp_path/'copy').read_text(encoding='utf-8') and told in summary(tmp_path/'copy')
    assert 'by the written one' not in page


def test_expected_scores_win():
    assert said(Prediction('a', 'x', 'test', 3., greedy=3., expected=3.2)) == 3.2


def test_only_the_split_asked_for():
    both = [Prediction('a', 'x', s, 3., greedy=3.) for s in ('val', 'test')]
    assert [p.split for p in group(both)['a']] == ['test']


def test_extremes_never_share_a_photo():
    for n in range(8):
        some = [Prediction('a', str(i), 'test', 3., greedy=3. + i / 5) for i in range(n)]
        best, worst = extremes(some)
        assert not {p.path for p in best} & {p.path for p in worst} and len(best) == len(worst) == min(3, n // 2)


@pytest.mark.parametrize('more, words', [(Interval(.1, .05, .2), 'better'), (Interval(-.1, -.2, -.05), 'worse'),
                                         (Interval(.1, -.05, .2), 'within noise'), (Interval(.1), 'within noise')])
def test_verdicts(more, words):
    found = verdict('a', 'b', 'SRCC', more, 9)
    assert words in found and 'nan' not in found and ('no interval' in found) == np.isnan(more.low)


def test_curves_skip_what_was_not_logged():
    assert curve([{'step': 1, 'x': None}, {'x': 2.}, {'step': 3, 'x': 2.}, {'step': 4, 'y': 1}], 'x') == ([3], [2.])


def test_figures_are_repeatable_and_named():
    draw = lambda figure: figure.subplots().scatter([0, 1], [0, 1])
    assert svg(draw, 'a', 'x "y"') == svg(draw, 'a', 'x "y"') != svg(draw, 'b', 'x "y"')
    assert 'aria-label="x &quot;y&quot;"' in svg(draw, 'a', 'x "y"') and '<metadata' not in svg(draw, 'a', '')
