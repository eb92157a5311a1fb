"""Looking into one prompt: attention, saliency, information flow, and uncertainty."""
