"""AEGPO: adaptive entropy-guided policy optimization for diffusion and flow models.

The package is the method alone: plain PyTorch, diffusers and peft, without a training framework.
Importing it loads nothing heavy; import the module that you need, for instance
``from aegpo.rollout import rollout``.

Shape letters, the same in every docstring:

======  ==========================================================================
B       prompts in the batch of one iteration, over all ranks
N       images, that is leaves of the rollout tree; groups of one prompt are ragged
E       stored transitions, that is stochastic edges of the rollout tree
T       denoising steps
L       attention layers that are watched
C H W   one latent, or one image where the text says so
S       text tokens
n       rows of whatever batch a function is given
======  ==========================================================================

Words: a *prompt* is a text; its *row* is its place in the batch; its *index* the row of the data
set that it came from, by which noise is keyed; a *group* is what advantages are relative to, most
often the images of one prompt. A *selector* chooses the exploration *schedule* of a rollout, an
*allocator* the group sizes, an *SDE* takes one step, and the *sampler* draws prompts, not images.

Symbols: ``sigma`` runs from 1 (noise) to 0 (data), ``x_sigma = (1 - sigma) x0 + sigma noise``; the
model predicts the velocity ``v = noise - x0``; ``dt = sigma_next - sigma`` is negative; ``eta`` is
a step's noise level, 0 for a deterministic step; ``std`` is always the standard deviation of the
next latents given the present ones, with the square root of ``-dt`` in it.
"""

__version__ = "0.1.0"
