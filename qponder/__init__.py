"""Reasoning-based visual quality assessment: an open implementation of Q-Ponder

Modules:

- `qponder.adapt`: Full fine-tuning or LoRA: which weights are trained, what is saved, and a check that what was saved is what was trained
- `qponder.audit`: Counts the tokens of every row before training, so that no photo or answer is truncated
- `qponder.base`: nano-base: a small vision-language model that describes known degradations and has seen no human score
- `qponder.baselines`: What a constant, a ridge regression on measurements, and BRISQUE reach on the same photos
- `qponder.chinese`: Chinese reasoning, read by putting English words of the lexicon in the place of its quality terms
- `qponder.claims`: The words for faults and their degrees, and a reader that finds them in free text
- `qponder.consistency`: Consistency rewards: rules that measure whether the reasoning leads to the score and describes the photo, and gates that decide what is paid
- `qponder.cost`: What a student takes: parameters, tokens, bytes and operations of a step, by arithmetic
- `qponder.data`: Rated photographs: dataset cards, the sample that ships, splits, and a check for leaks
- `qponder.decode`: Greedy decoding for nano, and the expected score: the mean over the scores that an answer might have had
- `qponder.degrade`: Synthetic distortions: nineteen kinds at five severities, and the fault that each of them causes
- `qponder.distill`: A teacher answers about every rated photo and about altered copies of it; no question is asked twice
- `qponder.doctor`: Checks a computer before a run: packages and their versions, GPUs, memory, disk and network
- `qponder.estimate`: Estimates before a run: GPU memory, tokens, hours and cost
- `qponder.evaluate`: One table for students and baselines, made from stored predictions, and tests of whether the reasoning depends on the photo
- `qponder.expert`: The prompts for teacher models, sentence by sentence, with the reason for each
- `qponder.fast`: nano's forward pass in plain PyTorch, so that rating one photo need not wait for imports
- `qponder.faults`: From measures to the faults that a person would mind, with thresholds found on photos with known damage
- `qponder.filters`: What is stored of a teacher's answer, and which answers a student learns from
- `qponder.grpo`: GRPO: the cold-started student learns from rewards for its own answers and becomes Q-Ponder, after a check of real rollouts
- `qponder.guards`: Guards against wrong length and repetition, and less weight for photos on which the student is uncertain
- `qponder.kernels`: Rewards for one answer by itself: a kernel of its score's error, and its format
- `qponder.losses`: What the cold start minimises: cross-entropy, with more weight for claims and terms that know the scale
- `qponder.marks`: A second model as judge of the reasoning: what it is asked, and how its marks are read
- `qponder.measure`: Ten low-level measures of a photo, computed from its pixels
- `qponder.metrics`: Agreement with human scores, and a confidence interval for every figure
- `qponder.model`: Students are vision-language models: load one, build nano, generate answers and expected scores, save it
- `qponder.objectives`: SFT objectives for the score: a level word, a soft label over five words, the order of photos, and the mix of reasons and bare scores
- `qponder.own`: On-policy fine-tuning: the student describes a photo, and is taught the verdict and the score that people gave after its own words
- `qponder.pairs`: Pairwise distillation: a teacher says which of two photos is better, and why
- `qponder.parity`: Do vLLM and transformers give the same answers with the same student?
- `qponder.photo`: Photos decoded as a viewer would show them, or refused with the reason
- `qponder.predict`: Each answer about each photo, stored with the text that it was read from
- `qponder.processes`: Runs on several processes: ranks, who writes files, and how an update is divided
- `qponder.rank`: Rank rewards: are photos scored in the order, or at the distance, in which people put them?
- `qponder.rate`: Rate one photo, two photos or a folder: a quality score with reasons
- `qponder.readers`: Learned readers of the reasoning, in place of rules: a text regression, the student's own likelihood, a judge model
- `qponder.reward`: The reward of GRPO: the parts of the pages before, weighted and handed to TRL; the default is ours, presets are other papers'
- `qponder.run`: The stages from photos to report, and all that is checked before the first of them starts
- `qponder.scale`: One scale for all scores, 1–5 and higher is better, and the conversion from each dataset's own
- `qponder.see`: Before the cold start, nano's vision tower is fine-tuned to predict human scores
- `qponder.served`: A large model behind an OpenAI-compatible API as teacher, with retries, a limit of rate and a limit of spending
- `qponder.settings`: One INI file, read into typed dataclasses; what is not understood is an error
- `qponder.sft`: The cold start: supervised fine-tuning on the teacher's traces, which makes a student Q-Ponder-CI
- `qponder.shards`: Rate or distill millions of photos in shards, with many workers, and do nothing twice
- `qponder.share`: The rollouts of a photo share one encoding of the photo and of the prompt
- `qponder.sheet`: One page of kept and dropped traces beside their photos, to look through before training
- `qponder.stage`: A run folder, its stages, and the manifest that makes each of them repeatable
- `qponder.store`: Lines of JSON that survive a kill, a full disk and two writers
- `qponder.tables`: A CSV file of your own rated photos: every problem is listed before anything is trained
- `qponder.teacher`: What a teacher is asked about a photo, and a teacher that writes reasoning from measurements, offline
- `qponder.tiny`: The large students' architectures in miniature, with random weights: to try a pipeline before a model is fetched
- `qponder.trace`: The grammar of an answer: the prompts that ask for it, the text that holds it, the parser that reads it
- `qponder.watch`: What a training writes down as it goes: its log, and how well the student ranks validation photos"""

__version__ = "0.16.0"
