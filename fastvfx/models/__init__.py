"""Complete models, built only from the public operators and modules of fastvfx."""
