"""How networks are trained: one module per recipe, one loop for all of them."""
