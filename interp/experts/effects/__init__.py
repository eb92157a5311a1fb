"""What experts do: effects of ablating and patching them."""
