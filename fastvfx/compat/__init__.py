"""Drop-in faces of other libraries: their names and signatures over fastvfx, without maths of their own."""
