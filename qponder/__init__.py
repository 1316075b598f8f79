"""Reasoning-based visual quality assessment: an open implementation of Q-Ponder

Modules:

- `qponder.adapt`: What of a student is trained, what is kept of it, and the proof that the two are the same
- `qponder.audit`: Before hours are spent: every photo's tokens are counted, and nothing will be cut off
- `qponder.base`: nano-base: a small vision-language model that describes known degradations and has seen no human score
- `qponder.chinese`: What is said of a photo in Chinese, read through the same small lexicon
- `qponder.consistency`: Does the reasoning lead to the score, and does it describe this photo? Rules that read it, and gates that pay for it
- `qponder.data`: Rated photographs: what a score means, photos that can be trusted, the sample that ships, and a CSV of your own
- `qponder.doctor`: Checks a computer before a run: packages and their versions, GPUs, memory, disk and network
- `qponder.estimate`: Estimates before a run: GPU memory, tokens, hours and cost
- `qponder.evaluate`: SRCC, PLCC and RMSE with intervals, baselines in the same table, and tests of whether the reasoning depends on the photo
- `qponder.expert`: What a teacher is asked, sentence by sentence, and why
- `qponder.fast`: nano in plain PyTorch: one photo rated in the time it takes to import a framework
- `qponder.grpo`: GRPO: the cold-started student learns from rewards for its own answers and becomes Q-Ponder, after a check of real rollouts
- `qponder.guards`: Against talking on and on, against repeating oneself, and against learning too much from photos on which the student is of many minds
- `qponder.kernels`: How close is the score, and is the answer laid out as asked? What one answer earns by its number alone
- `qponder.marks`: What a judge is asked about a reasoning, and how its marks are read
- `qponder.model`: Students: load one, build nano, fix how photos enter, let it speak, read the score it expects, save it.
- `qponder.objectives`: What a cold start can teach about a score beside its digits: a word, a soft label over five words, an order, and the balance of reasons and bare scores
- `qponder.own`: A lesson in one's own words: the student describes a photo, and learns what people say of it after such a description
- `qponder.pairs`: Two photos put to a teacher: which one is better, and why?
- `qponder.parity`: Do vLLM and transformers give the same answers with the same student?
- `qponder.photo`: A photo, opened or refused
- `qponder.processes`: One run on several processes: who am I, who writes, and how is an update shared
- `qponder.rank`: Is the better photo given the higher score? A reward that compares photos instead of reading one number
- `qponder.rate`: Rate one photo, two photos or a folder: a quality score with reasons
- `qponder.readers`: Somebody else reads the reasoning: a regression on its words, the student itself, a judge
- `qponder.reward`: What a student is paid for: a readable answer, a score close to the human one, and reasoning that agrees with both the score and the photo
- `qponder.see`: Before the cold start, nano's vision tower is fine-tuned to predict human scores
- `qponder.served`: A large model behind an address writes the traces
- `qponder.sft`: The cold start: supervised fine-tuning on the teacher's traces, which makes a student Q-Ponder-CI
- `qponder.shards`: Rate or distill millions of photos in shards, with many workers, and do nothing twice
- `qponder.sheet`: One page of kept and dropped traces beside their photos, to look through before training
- `qponder.tiny`: The large students' architectures in miniature, without weights: to try a pipeline before a model is fetched"""

__version__ = "0.13.0"
