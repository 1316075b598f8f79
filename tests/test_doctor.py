"The doctor: machines that we do not have, and the lines about them."
import os
from dataclasses import replace

import pytest

from qponder.cli import main
from qponder.doctor import GPU, PAIRS, Machine, check_companions, check_pairs, check_twins, examine, look

WANTS = {'qponder': ('torch>=2.6', "trl>=1.16,<2; python_version>='3.11'", "trl<1.15; python_version<'3.11'",
                     'ray[data]>=2.40; extra == "scale"', 'pytest; extra == "dev"'),
         'trl': ('accelerate>=1.10.1', 'vllm<=0.31.0,>=0.22.0; extra == "vllm"')}
FIT = Machine({'python': '3.12.3', 'qponder': '0.6.0', 'torch': '2.14.1', 'torchvision': '0.29.1', 'trl': '1.16.0',
               'accelerate': '1.15.0'}, 8, 30., 200., (GPU('A100', 80.),), driver=True, wants=WANTS)


def with_(**packages): return replace(FIT, packages=FIT.packages | packages)


def wrong(machine): return [f.what for f in examine(machine) if f.state == 'wrong']


def test_nothing_is_wrong_with_a_machine_that_is_fit(): assert wrong(FIT) == []


@pytest.mark.parametrize('machine, what', [
    (with_(trl='1.10.0'), ['trl']), (with_(trl='2.0.0'), ['trl']), (with_(vllm='0.40.0'), ['vllm']),
    (with_(torch='2.13.0'), ['torchvision']), (with_(torch='2.14.1+cpu', torchvision='0.29.1+cu130'), ['torchvision']),
    (with_(ray='2.9.0'), ['ray']), (replace(FIT, disk=.5), ['disk']), (replace(FIT, memory=1.), ['memory']),
    (replace(FIT, gpus=()), ['GPU']), (replace(FIT, wants={}), ['qponder']),
    (replace(FIT, packages={k: v for k, v in FIT.packages.items() if k != 'torch'}), ['torch']),
])
def test_what_is_wrong_is_named_and_mended(machine, what):
    assert wrong(machine) == what
    assert all(f.remedy for f in examine(machine) if f.state == 'wrong')


def test_python_decides_which_requirement_holds():
    old = replace(FIT, packages=FIT.packages | {'python': '3.10.14', 'trl': '1.14.0'})
    assert wrong(old) == [] and wrong(with_(trl='1.14.0')) == ['trl']


def test_companions_that_are_not_installed_are_not_wrong():
    assert not list(check_companions(FIT)) and 'vllm' in {f.what for f in examine(FIT) if f.state == 'note'}


@pytest.mark.parametrize('pair', PAIRS, ids=lambda p: p.one)
def test_a_pair_has_its_source(pair):
    assert pair.source and pair.remedy and pair.trouble


def test_bad_pairs_are_bad_only_together():
    assert [f.what for f in check_pairs(with_(torch='2.9.0', cuda='12.8'))] == ['torch 2.9.0 with cuda 12.8']
    assert not list(check_pairs(with_(torch='2.9.0'))) and not list(check_pairs(with_(cuda='12.8')))


@pytest.mark.parametrize('torch, vision', [('2.6.0', '0.21.0'), ('2.8.0+cu128', '0.23.0+cu128'), ('2.14.1', '0.29.0')])
def test_twins(torch, vision): assert not list(check_twins(with_(torch=torch, torchvision=vision)))


def test_this_machine(tmp_path, capsys):
    here = look(tmp_path/'runs')
    code = main(['doctor', '--runs', str(tmp_path/'runs')])
    assert not (tmp_path/'runs').exists() and capsys.readouterr().out.splitlines()[0].split(':')[0].strip()
    assert code == int(any(f.state == 'wrong' for f in examine(here)))


@pytest.mark.parametrize('runs', ['file', 'file/runs'])
def test_runs_cannot_be_kept_in_a_file(tmp_path, capsys, runs):
    (tmp_path/'file').write_text('')
    assert main(['doctor', '--runs', str(tmp_path/runs)]) == 1
    assert f'! runs: {tmp_path/"file"} is a file. Give --runs another folder' in capsys.readouterr().out


def test_runs_cannot_be_kept_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    assert 'runs' in wrong(look(tmp_path/'runs')) and 'may not be written to' in look(tmp_path).barred
