"""What can be wrong with data. Each class is one kind of fault, for which a user has one remedy.

Errors cross process boundaries by their message alone, so none has further attributes.
"""


class SourceError(ValueError):
    """A parameter of a source cannot be used; the message begins with its name."""


class MissingSource(FileNotFoundError):
    """There is nothing to read where a parameter of a source points; the message begins with it."""


class UnknownWord(ValueError):
    """A folder is named after no known degradation."""


class MissingSplit(FileNotFoundError):
    """A folder of pairs lacks the folder of a split."""


class MissingDegraded(FileNotFoundError):
    """There is no folder of degraded images, but the degradation can be synthesised."""


class MissingDatasets(FileNotFoundError):
    """Public datasets are not where they are looked for."""


class MissingPackage(FileNotFoundError):
    """A package that holds photographs is not installed."""


class FormatError(ValueError):
    """A parameter of the shard format cannot be used; the message begins with its name."""


class TooManyBadPairs(ValueError):
    """More samples had to be left out of the shards than is allowed."""


class MissingShards(FileNotFoundError):
    """There is no shard index."""


class BadIndex(ValueError):
    """A shard index is damaged, or lists no sample of a split."""


class TaskWeightsError(ValueError):
    """The weights of the tasks do not fit the tasks; the message begins with `task_weights`."""


class TooManyBadSamples(ValueError):
    """More of the training data cannot be used than is allowed."""
