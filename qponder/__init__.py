"""Reasoning-based visual quality assessment: an open implementation of Q-Ponder

Modules:

- `qponder.adapt`: What of a student is trained, what is kept of it, and the proof that the two are the same
- `qponder.audit`: Before hours are spent: every photo's tokens are counted, and nothing will be cut off
- `qponder.base`: nano-base: a small model that describes what it sees, before it has met anybody's opinion.
- `qponder.chinese`: What is said of a photo in Chinese, read through the same small lexicon
- `qponder.consistency`: Does the reasoning lead to the score, and does it describe this photo? Rules that read it, and gates that pay for it
- `qponder.data`: Rated photographs: what a score means, photos that can be trusted, the sample that ships, and a CSV of your own
- `qponder.doctor`: Is this computer fit for it? What is installed, what is missing, and what is known not to go together
- `qponder.estimate`: What a run will take, before it begins: memory, tokens, hours, money
- `qponder.evaluate`: How good the scores are, how sure we can be of that, and whether the reasoning means anything
- `qponder.expert`: What a teacher is asked, sentence by sentence, and why
- `qponder.fast`: nano in plain PyTorch: one photo rated in the time it takes to import a framework
- `qponder.grpo`: Look before you train, then let the student learn from its own answers: Q-Ponder-CI becomes Q-Ponder.
- `qponder.guards`: Against talking on and on, against repeating oneself, and against learning too much from photos on which the student is of many minds
- `qponder.kernels`: How close is the score, and is the answer laid out as asked? What one answer earns by its number alone
- `qponder.marks`: What a judge is asked about a reasoning, and how its marks are read
- `qponder.model`: Students: load one, build nano, fix how photos enter, let it speak, read the score it expects, save it.
- `qponder.objectives`: What a cold start can teach about a score beside its digits: a word, a soft label over five words, an order, and the balance of reasons and bare scores
- `qponder.own`: A lesson in one's own words: the student describes a photo, and learns what people say of it after such a description
- `qponder.pairs`: Two photos put to a teacher: which one is better, and why?
- `qponder.parity`: Two engines, one student: does vLLM answer as transformers does?
- `qponder.photo`: A photo, opened or refused
- `qponder.processes`: One run on several processes: who am I, who writes, and how is an update shared
- `qponder.rank`: Is the better photo given the higher score? A reward that compares photos instead of reading one number
- `qponder.rate`: The thing people call: one photo, two photos or a folder, rated with reasons
- `qponder.readers`: Somebody else reads the reasoning: a regression on its words, the student itself, a judge
- `qponder.reward`: What a student is paid for: a readable answer, a score close to the human one, and reasoning that agrees with both the score and the photo
- `qponder.see`: Before it explains anything, a small student's tower learns what people mind
- `qponder.served`: A large model behind an address writes the traces
- `qponder.sft`: The cold start: a student learns its teacher's traces word by word and becomes Q-Ponder-CI.
- `qponder.shards`: Millions of photos: shards in, shards out, many workers, and nothing done twice
- `qponder.sheet`: Kept and dropped traces with their photos on one page, to be looked through before anybody learns from them
- `qponder.tiny`: The large students' architectures in miniature, without weights: to try a pipeline before a model is fetched"""

__version__ = "0.13.0"
