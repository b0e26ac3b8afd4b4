"""The pipeline's command with a pause after each training step, to be killed between two."""

import sys
import time

from lightning.pytorch import LightningModule

from pipeline.__main__ import main

if __name__ == "__main__":
    LightningModule.on_train_batch_end = lambda *_: time.sleep(0.5)  # type: ignore[method-assign]
    sys.exit(main())
