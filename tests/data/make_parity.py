"""Writes parity.npz: birder's maps of a small network, thinned out. Run from the project's root:

python -m tests.data.make_parity
"""

from pathlib import Path

import numpy as np

from tests.oracle import SMALL, birder_map, birder_net, seeded_images

STEP = 6  # every sixth row and column of the maps
SIZES = [(224, 224), (224, 336), (518, 392), (1022, 700)]


def main() -> None:
    arrays = {'step': np.array(STEP)}
    for case in ('none', 'pretrain', 'raw'):
        config = SMALL | dict(pt_grid_size=(16, 16) if case == 'pretrain' else None)
        net = birder_net(config=config)
        for size in SIZES:
            images = seeded_images((1, 3, *size))
            maps = birder_map(net, images, final_norm=case != 'raw')
            arrays[f'{case}_{size[0]}x{size[1]}'] = maps[..., ::STEP, ::STEP].numpy()
    np.savez_compressed(Path(__file__).with_name('parity.npz'), **arrays)


if __name__ == '__main__':
    main()
