"""What the curves of a run mean, for readers of TensorBoard."""

import fnmatch
from collections.abc import Iterable

# Name, or pattern of names -> meaning. The first that fits counts.
_MEANINGS = {
    # Of every run.
    'run/steps_per_second': 'Steps per second, evaluations left out.',
    'run/peak_memory_gb':
        'The most memory of the process so far, in 10^9 bytes.',
    'run/peak_device_memory_gb':
        'The most memory of the first device so far, in 10^9 bytes.',
    'schedule/learning_rate*': 'Learning rate of the step.',
    'schedule/guidance.scale':
        'Weight of the prompt: larger values fit it more closely and '
        'oversaturate colors.',
    'schedule/guidance.options.time_*':
        'Noise levels are drawn between time_min and time_max: 1 is pure '
        'noise, 0 none.',
    'schedule/scene.penalties.*':
        'Weight of weighted_penalty/ of the same name.',
    'schedule/render_size': 'Pixels a side of the neural rendering.',
    'schedule/r1_gamma': 'Weight of the gradient penalty loss/r1.',
    'schedule/*': 'The value that the schedule of this key of the config has '
                  'at the step.',
    # Text to 3-D.
    'sds/grad_norm':
        'Norm of the gradient that the teacher (score distillation of any '
        'kind) sends into the image. It is no loss: it need not fall, and '
        'changes with the guidance scale and the noise level.',
    'sds/t': 'Noise level of the step, 1 is pure noise. It is drawn at random.',
    'opacity': 'Share of the image that the object covers. Near 0 it has '
               'vanished, near 1 it fills the view.',
    'student/loss': "Error of the student's denoising of the scene's renders.",
    'clip/cosine': 'Similarity of render and prompt by CLIP: larger is better.',
    'clip/image_cosine':
        'Similarity of render and image feature by CLIP: larger is better.',
    'weighted_penalty/opacity_entropy':
        'Penalty on half-transparent rays, times its weight. The weight rises '
        'late in the training, so that the curve grows by design.',
    'weighted_penalty/*':
        'A penalty times its weight. Where the weight has a schedule '
        '(schedule/scene.penalties), the curve may grow by design.',
    # GANs.
    'loss/generator': 'Loss of the generator. The two losses of a GAN balance: '
                      'neither falls steadily.',
    'loss/discriminator':
        'Loss of the discriminator. The two losses of a GAN balance: neither '
        'falls steadily; near 0 the discriminator has won, which is bad.',
    'loss/regularizer': 'Regularization of the generator, in the steps that '
                        'have it.',
    'loss/r1': 'Squared gradient of the discriminator at real images, in the '
               'steps that have it.',
    'logits/real_sign': 'Share of real images that the discriminator '
                        'recognizes, from -1 (none) to 1 (all).',
    'logits/*': "The discriminator's mean verdict: positive is real.",
    'augment/probability': 'Probability of the augmentation, which adapts to '
                           'logits/real_sign.',
    'frechet_*/generated': 'Distance of generated to real images: smaller is '
                           'better, real_halves is as good as it can get.',
    'frechet_*/real_halves': 'Distance of two halves of the real images.',
    # Captures.
    'psnr': 'Fit to the pixels of the batch, in dB: larger is better.',
    'loss/photometric': 'Squared error of the pixels of the batch.',
    'test/psnr': 'Fit to photographs that are not trained on, in dB: larger '
                 'is better.',
    'test/ssim': 'Structural similarity to them, at most 1: larger is better.',
    'test/lpips': 'Perceptual distance to them: smaller is better.',
    # Networks of the shapes world.
    'held_out/*': 'The loss of this name on images that are not trained on.',
    'accuracy/*': 'Share of the batch that is matched rightly.',
    'r_precision/*': 'Share of held-out images whose caption is retrieved.',
    'scale': 'Inverse temperature of the contrastive loss; it is learned.',
    'l1/own_view': 'Absolute error of the reconstructed images.',
    'loss/*': 'A term of the loss: smaller is better.',
    '*/angle': 'Median error of the direction on held-out pictures, degrees.',
    '*/depth': 'Mean error of the depth on held-out pictures, world units.',
    '*/mask_iou': 'Overlap of estimated and true silhouette, at most 1.',
}


def meaning(name: str) -> str:
  """Returns what a metric means; '' for one that is not known."""
  return next((text for pattern, text in _MEANINGS.items()
               if fnmatch.fnmatchcase(name, pattern)), '')


def table(names: Iterable[str]) -> str:
  """Returns a table of metrics and their meanings in Markdown."""
  return '\n'.join(['| curve | meaning |', '|---|---|', *(
      f'| `{name}` | {meaning(name)} |' for name in sorted(names))])
