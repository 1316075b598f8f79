"The sheet shows what is stored, whatever it says, and says the same every time."
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from qponder.filters import FILTERS, Record
from qponder.photo import pristine
from qponder.scale import QPonderError
from qponder.sheet import card, choose, sheet
from qponder.store import write_records

KNOWN = set('html meta title style body h1 p div table tr th td input label figure figcaption span b img'.split())


class Page(HTMLParser):
    "The tags and the text of a page."
    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], set(), ''
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {k for k, _ in attrs}

    def handle_data(self, data): self.text += data


HOSTILE = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "' onclick='x", '</style></figure>',
           '&lt;b&gt;', '<think>x</think><answer><b>3</b></answer>', '\udc80 \x00 \u2028', '{score} {0} %s']
hostile = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=5), max_size=4).map(''.join)


@given(*[hostile] * 6)
def test_hostile_text_stays_text(raw, path, name, marks, note, verdict):
    record = Record(path=path or 'x', raw=raw, name=name, marks=marks, note=note, verdict=verdict, score=3.0)
    page = Page(card(record, 0))
    assert set(page.tags) <= {'figure', 'figcaption', 'p', 'span', 'b'} and page.attributes <= {'class'}


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(40)))
def test_the_page_is_whole_and_the_choice_fixed(tmp_path, order):
    verdicts = ['kept', *FILTERS, '<b>odd</b>']
    records = [Record(id=str(i), path='gone.jpg', raw=HOSTILE[i % 8], verdict=verdicts[i % 12]) for i in range(40)]
    write_records(tmp_path/'traces.jsonl', [records[i] for i in order], 'w')
    html = sheet(tmp_path, most=2).read_text(encoding='utf-8')
    page = Page(html)
    assert set(page.tags) <= KNOWN and page.tags.count('figure') == 24 and page.tags.count('input') == 13
    assert 'http' not in html and next(iter(choose(records))) == 'kept'
    seen = tmp_path/'seen.html'
    if not seen.exists(): seen.write_text(html, encoding='utf-8')
    assert html == seen.read_text(encoding='utf-8')


def test_photos_are_inside_the_page(tmp_path):
    raw, versions = '<think>x</think><answer>3.0</answer>', zip(pristine(), ('', 'jpeg 5', ''), (0, 0, 1))
    shown = [Record(id=f'{i}', path=str(p), damage=d, view=v, verdict='kept', raw=raw)
             for i, (p, d, v) in enumerate(versions)]
    write_records(tmp_path/'traces.jsonl', shown, 'w')
    page = sheet(tmp_path, tmp_path/'page.html')
    assert page.read_text(encoding='utf-8').count('src="data:image/jpeg;base64,') == 3 and page.name == 'page.html'


def test_no_traces_is_a_plain_error(tmp_path):
    with pytest.raises(QPonderError, match='qponder distill'): sheet(tmp_path)
