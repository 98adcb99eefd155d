"""Which teacher should your small model learn from?"""
