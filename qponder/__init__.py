"""Reasoning-based visual quality assessment: an open implementation of Q-Ponder

Modules:

- `qponder.adapt`: Full fine-tuning or LoRA: which weights are trained, what is saved, and a check that what was saved is what was trained
- `qponder.audit`: Counts the tokens of every row before training, so that no photo or answer is truncated
- `qponder.base`: nano-base: a small model that describes what it sees, before it has met anybody's opinion.
- `qponder.chinese`: Chinese reasoning, read by putting English words of the lexicon in the place of its quality terms
- `qponder.consistency`: Consistency rewards: rules that measure whether the reasoning leads to the score and describes the photo, and gates that decide what is paid
- `qponder.data`: Rated photographs: dataset cards, the sample that ships, a CSV of your own, splits, and a check for leaks
- `qponder.degrade`: Synthetic distortions: nineteen kinds at five severities, and the fault that each of them causes
- `qponder.distill`: A teacher writes a reasoning trace for every rated photo; each is stored with its origin, and kept or dropped by named filters
- `qponder.doctor`: Is this computer fit for it? What is installed, what is missing, and what is known not to go together
- `qponder.estimate`: What a run will take, before it begins: memory, tokens, hours, money
- `qponder.evaluate`: How good the scores are, how sure we can be of that, and whether the reasoning means anything
- `qponder.expert`: The prompts for teacher models, sentence by sentence, with the reason for each
- `qponder.fast`: nano's forward pass and decoding in plain PyTorch, so that rating one photo need not wait for imports
- `qponder.grpo`: Look before you train, then let the student learn from its own answers: Q-Ponder-CI becomes Q-Ponder.
- `qponder.guards`: Guards against wrong length and repetition, and less weight for photos on which the student is uncertain
- `qponder.kernels`: Rewards for one answer by itself: a kernel of its score's error, and its format
- `qponder.marks`: A second model as judge of the reasoning: what it is asked, and how its marks are read
- `qponder.measure`: Ten low-level measures of a photo, and the faults that they indicate
- `qponder.model`: Students are vision-language models: load one, build nano, generate answers and expected scores, save it
- `qponder.objectives`: SFT objectives for the score: a level word, a soft label over five words, the order of photos, and the mix of reasons and bare scores
- `qponder.own`: On-policy fine-tuning: the student describes a photo, and is taught the verdict and the score that people gave after its own words
- `qponder.pairs`: Pairwise distillation: a teacher says which of two photos is better, and why
- `qponder.parity`: Two engines, one student: does vLLM answer as transformers does?
- `qponder.photo`: Photos decoded as a viewer would show them, or refused with the reason
- `qponder.processes`: Runs on several processes: ranks, who writes files, and how an update is divided
- `qponder.rank`: Rank rewards: are photos scored in the order, or at the distance, in which people put them?
- `qponder.rate`: The thing people call: one photo, two photos or a folder, rated with reasons
- `qponder.readers`: Learned readers of the reasoning, in place of rules: a text regression, the student's own likelihood, a judge model
- `qponder.reward`: The reward of GRPO: the parts of the pages before, weighted and handed to TRL; the default is ours, presets are other papers'
- `qponder.scale`: One scale for all scores, 1–5 and higher is better, and the conversion from each dataset's own
- `qponder.see`: Before it explains anything, a small student's tower learns what people mind
- `qponder.served`: A large model behind an OpenAI-compatible API as teacher, with retries, a limit of rate and a limit of spending
- `qponder.sft`: The cold start: a student learns its teacher's traces word by word and becomes Q-Ponder-CI.
- `qponder.shards`: Millions of photos: shards in, shards out, many workers, and nothing done twice
- `qponder.sheet`: Kept and dropped traces with their photos on one page, to be looked through before anybody learns from them
- `qponder.tiny`: The large students' architectures in miniature, with random weights: to try a pipeline before a model is fetched
- `qponder.trace`: The grammar of an answer: the prompts that ask for it, the text that holds it, the parser that reads it"""

__version__ = "0.13.0"
