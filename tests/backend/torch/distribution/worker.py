"""One of several processes that train one model, as in Keras's own guide.

https://keras.io/guides/distributed_training_with_torch:
`DistributedDataParallel`
around the model, and a loop of one's own. Rho learn in `rho_step`, which each
process takes on a part of the regularization set; then their mean is taken.

    python worker.py RANK WORLD_SIZE PORT FILE
"""

import sys

import keras
import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import keras_crossreg as kcr

rank, size = int(sys.argv[1]), int(sys.argv[2])
dist.init_process_group(
    "gloo",
    init_method=f"tcp://127.0.0.1:{sys.argv[3]}",
    rank=rank,
    world_size=size,
)
keras.utils.set_random_seed(0)
inputs = keras.Input((3,))
x = keras.layers.Dense(8, "tanh")(inputs)
x = kcr.layers.GaussianNoiseScale(0.5, seed=1)(x)
model = kcr.CrossRegModel(inputs, keras.layers.Dense(2)(x))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("sgd", loss, rho_optimizer="sgd", num_samples=8)
rng = np.random.default_rng(0)
data = rng.normal(size=(4 * size, 16, 3)).astype("float32")
theta = [v.value for v in model.theta_variables]
optimizer = torch.optim.SGD(theta, lr=0.1)
parallel = DistributedDataParallel(model)
for batch in torch.as_tensor(data)[rank::size]:
    y = (batch.sum(-1) > 0).long()
    optimizer.zero_grad()
    loss(y, parallel(batch, training=True)).backward()
    optimizer.step()
    model.rho_step((batch, y))
    for rho in model.rho_variables:
        dist.all_reduce(rho.value)
        rho.assign(rho.value / size)
noise = kcr.random.normal((4,), model.layers[2].seed_generator, "float32")
np.savez(
    f"{sys.argv[4]}.{rank}.npz",
    noise=noise,
    rho=np.array([float(v.numpy()) for v in model.rho_variables]),
    **{f"theta{i}": v.numpy() for i, v in enumerate(model.theta_variables)},
)
dist.destroy_process_group()
