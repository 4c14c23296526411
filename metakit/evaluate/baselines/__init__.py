"""What any meta-learner should beat: algorithms that learn nothing across tasks."""

from . import gradient_histograms as gradient_histograms, nearest_neighbour as nearest_neighbour
