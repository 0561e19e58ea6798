"""Parts of notebook 1's GAN: augmentation, weight averaging, the teacher's loss, generation."""

import keras
import numpy as np
from keras import ops

from core.optimizers import Adam
from core.streams import random_stream

PART = 10_000  # images that are generated at once; as floats, they take 120 MB


def shift(images, seed: keras.random.SeedGenerator):
    """Return images (n, 32, 32, channels), each shifted by up to 4 pixels and padded with 0."""
    positions = ops.arange(32)  # products with shifted identity matrices let gradients pass
    for product in ("nij,njkc->nikc", "nij,nkjc->nkic"):  # moves rows, then columns
        offset = keras.random.randint((ops.shape(images)[0], 1, 1), -4, 5, seed=seed)
        shifted = ops.equal(positions[:, None] + offset, positions)  # (n, 32, 32)
        images = ops.einsum(product, ops.cast(shifted, images.dtype), images)
    return images


def with_copies(images, seed: keras.random.SeedGenerator):
    """Return images (n, 32, 32, channels) and then n shifted copies, about half of them flipped."""
    flipped = keras.random.uniform((ops.shape(images)[0], 1, 1, 1), seed=seed) < 0.5
    copies = shift(ops.where(flipped, ops.flip(images, axis=2), images), seed)
    return ops.concatenate([images, copies])


class Augmentation(keras.layers.Layer):
    """First layer of a discriminator: random shifts and cutout (DiffAugment, Zhao et al., 2020).

    Images (n, 32, 32, 3) are shifted by up to 4 pixels, and a square of up to 17x17 is set to 0.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed = keras.random.SeedGenerator(seed)

    def call(self, images):
        n, images = ops.shape(images)[0], shift(images, self.seed)
        positions = ops.arange(32)
        y, x = (keras.random.randint((n, 1, 1), 0, 33, seed=self.seed) for _ in range(2))
        rows, columns = ops.abs(positions[:, None] - y) <= 8, ops.abs(positions - x) <= 8
        mask = ops.logical_and(rows, columns)[..., None]  # (n, 32, 32, 1)
        return images * (1 - ops.cast(mask, images.dtype))


def call_frozen(network: keras.Model, inputs: list):
    """Return a network's output in inference mode; gradients reach its inputs, not its weights."""
    groups = network.trainable_variables, network.non_trainable_variables
    constants = [
        [ops.stop_gradient(variable.value) for variable in variables] for variables in groups
    ]
    return network.stateless_call(*constants, inputs, training=False)[0]


def two_rates(gan: keras.Model, generator_rate, discriminator_rate) -> keras.Optimizer:
    """Return an optimiser that applies one Adam (beta_1 = 0) per network (Heusel et al., 2017)."""
    generator_adam = Adam(generator_rate, beta_1=0.0, beta_2=0.99)
    discriminator_adam = Adam(discriminator_rate, beta_1=0.0, beta_2=0.99)

    def choose(variable):
        in_generator = any(variable is own for own in gan.generator.trainable_variables)
        return generator_adam if in_generator else discriminator_adam

    return keras.optimizers.MultiOptimizer(choose)


class _Part(keras.layers.Layer):
    """A layer that creates its weights when constructed and is not saved on its own."""

    def __init__(self):
        super().__init__(dtype="float32")
        self.built = True

    def hold(self, value) -> keras.Variable:
        """Store an array as a weight, because PyTorch cannot mix NumPy arrays with GPU tensors."""
        value = np.asarray(value, "float32")
        weight = self.add_weight(shape=value.shape, initializer="zeros", trainable=False)
        weight.assign(value)
        return weight

    def get_config(self):  # never serialised; core/code_reader.py reads the attributes
        return {}


class MovingAverage(_Part):
    """Moving average of weights over about the last ninth of the steps (Karras et al., 2024)."""

    def __init__(self, original: keras.Model):
        super().__init__()
        self.network = keras.models.clone_model(original)
        self.network.set_weights(original.get_weights())
        self.network.trainable = False
        self.step = self.hold(0)

    def update(self, original: keras.Model) -> None:
        """Move the averages towards the original's current weights; call this once per step."""
        momentum = (1 + self.step) / (10 + self.step)
        for average, new in zip(self.network.weights, original.weights, strict=True):
            average.assign(average * momentum + ops.stop_gradient(new.value) * (1 - momentum))
        self.step.assign_add(1)


def class_moments(teacher: keras.Model, images: np.ndarray, labels: np.ndarray) -> dict:
    """Return the class means and the within-class covariance of a teacher's features.

    The teacher is a classifier trained on real images. Takes `uint8` images (n, 32, 32, 3) and
    `int` labels (n,). Returns `means` (100, d), `covariance` (d, d), and `scale`, the mean standard
    deviation of the features. The features are divided by it before the moments are computed.
    """
    extractor = keras.Model(teacher.inputs, teacher.get_layer("features").output)
    features = extractor.predict(images, batch_size=500, verbose=0)
    scale = float(features.std(axis=0).mean())
    features /= scale
    means = np.stack([features[labels == label].mean(axis=0) for label in range(100)])
    covariance = np.cov(features - means[labels], rowvar=False).astype("float32")
    return {"means": means, "covariance": covariance, "scale": scale}


class ClassMoments(_Part):
    """Compares the moments of generated features (n, d) with the real `means` and `covariance`.

    Generated means are running averages over about the last ten images of a class, and the
    covariance over about the last twenty batches. The two numbers returned have no meaning of their
    own; only their gradients matter. With respect to the features, they are those of half the
    squared distance between the means (Salimans et al., 2016, section 3.1) and of a quarter of the
    squared distance between the covariances (dos Santos et al., 2019).
    """

    def __init__(self, means: np.ndarray, covariance: np.ndarray):
        super().__init__()
        self.real_means, self.means = self.hold(means), self.hold(0 * means)
        self.real_covariance, self.covariance = self.hold(covariance), self.hold(covariance)

    def call(self, features, one_hot):  # (n, d), (n, 100)
        count = ops.sum(one_hot, axis=0)[:, None]
        means = ops.matmul(ops.transpose(one_hot), ops.stop_gradient(features))
        decay = ops.power(0.9, count)
        self.means.assign(self.means * decay + means / ops.maximum(count, 1) * (1 - decay))
        centred = features - ops.matmul(one_hot, self.real_means)
        fixed = ops.stop_gradient(centred)
        covariance = ops.matmul(ops.transpose(fixed), fixed) / ops.sum(one_hot)
        self.covariance.assign(0.95 * self.covariance + 0.05 * covariance)
        gaps = ops.matmul(one_hot, self.means.value - self.real_means)
        spreads = ops.matmul(fixed, self.covariance.value - self.real_covariance)
        gap_loss = ops.sum(centred * ops.stop_gradient(gaps), axis=1)
        spread_loss = ops.sum(centred * ops.stop_gradient(spreads), axis=1)
        return ops.mean(gap_loss), ops.mean(spread_loss)


class TeacherLoss(_Part):
    """The loss that the teacher, a classifier trained on real images, adds to the generator's loss.

    `moments` come from `class_moments`. `guidance` is the weight of the cross-entropy of the
    teacher's predictions (Sauer et al., 2022, section 3.3), `matching` that of the class means, and
    `covariance_ratio` * `matching` that of the covariance. This last one grows from 0 over
    `total_steps`, because generated images are mostly noise early in training.
    """

    def __init__(
        self, teacher, moments, total_steps, guidance=0.1, matching=0.05, covariance_ratio=0.08
    ):
        super().__init__()
        features = teacher.get_layer("features").output
        self.teacher = keras.Model(teacher.inputs, [teacher.output, features])
        self.teacher.trainable = False
        self.moments = ClassMoments(moments["means"], moments["covariance"])
        self.scale, self.total_steps = moments["scale"], total_steps
        self.guidance, self.matching, self.covariance_ratio = guidance, matching, covariance_ratio
        self.step = self.hold(0)

    def call(self, images, labels):  # images (n, 32, 32, 3) from -1 to 1, labels `int` (n,)
        one_hot = ops.one_hot(labels, 100)
        probabilities, features = self.teacher((images + 1) * 127.5, training=False)
        cross_entropy = ops.mean(keras.losses.categorical_crossentropy(one_hot, probabilities))
        means, covariance = self.moments(ops.cast(features, "float32") / self.scale, one_hot)
        covariance_weight = self.covariance_ratio * self.step / self.total_steps
        self.step.assign_add(1)
        moments = means + covariance_weight * covariance
        return self.guidance * cross_entropy + self.matching * moments


def with_confidence(generator: keras.Model, teacher: keras.Model) -> keras.Model:
    """Return a generator with a second output (n,): the teacher's probability of the class."""
    layers, (_, label), image = keras.layers, generator.inputs, generator.output
    pixels = layers.Rescaling(127.5, offset=127.5, dtype="float32")(image)
    # A new model, so that the teacher's optimiser is not saved with it.
    probabilities = keras.Model(teacher.inputs, teacher.output)(pixels)
    one_hot = layers.CategoryEncoding(100, "one_hot", dtype="float32")(label)
    confidence = layers.Dot(axes=1, dtype="float32")([probabilities, one_hot])
    return keras.Model(generator.inputs, [image, layers.Reshape((), dtype="float32")(confidence)])


def generate(
    generator: keras.Model, labels: np.ndarray, seed: int, candidates: int = 1, stream: str = "draw"
) -> np.ndarray:
    """Return one image for each label, `uint8` (n, 32, 32, 3), from noise drawn with `seed`.

    Takes labels `int` (n,). If the generator comes from `with_confidence`, each image is the best
    of `candidates` according to the teacher (Razavi et al., 2019, section 3.3). Otherwise it is the
    first candidate.
    """
    rng, size = random_stream(stream, seed), generator.inputs[0].shape[-1]
    images, best = np.zeros((len(labels), 32, 32, 3), "uint8"), np.full(len(labels), -1.0)
    parts = [slice(start, start + PART) for start in range(0, len(labels), PART)]
    for _ in range(candidates):
        for part in parts:
            wanted = labels[part].astype("int32")
            noise = rng.standard_normal((len(wanted), size), "float32")
            new = generator.predict([noise, wanted], batch_size=250, verbose=0)
            new, confidence = new if isinstance(new, list) else (new, np.zeros(len(wanted)))
            better = confidence > best[part]
            images[part][better] = np.clip(np.round((new[better] + 1) * 127.5), 0, 255)
            best[part][better] = confidence[better]
    return images
